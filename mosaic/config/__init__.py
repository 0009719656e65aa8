"""From a Hydra configuration to plain values: the only place that knows both."""
