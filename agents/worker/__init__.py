"""The worker node: takes jobs from its site's gatekeeper by credit and runs them as real processes."""
