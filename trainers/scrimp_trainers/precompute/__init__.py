"""What is made once for a dataset before the first step: coreset, class weights."""
