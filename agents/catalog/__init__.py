"""The replica and file catalogue: logical names, what they name, and where its copies are."""
