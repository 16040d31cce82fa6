"""`grid demo`: a Monte Carlo production on a five-site grid, through the same clients that every user has."""
