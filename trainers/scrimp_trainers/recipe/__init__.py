"""The recipe's sections, and the recipe; free of torch."""
