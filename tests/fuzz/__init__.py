"""Inputs from strangers, changed at random: `make fuzz`, and a short run of each target in the tests."""
