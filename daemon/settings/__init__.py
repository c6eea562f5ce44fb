"""The keys, where they come from, secrets, and what a reload may change."""
