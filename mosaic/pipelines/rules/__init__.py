"""Rules say when the answers of a question so far are enough; see README.md for a rule of your own."""
