"""Rules say when the answers of a question so far are enough; docs/how-to/rule.md makes one."""
