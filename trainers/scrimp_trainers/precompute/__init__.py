"""What is computed once per dataset before training: coreset and class weights."""
