"""What the grid does in a second, beside what the machine could do at most in the same minute."""
