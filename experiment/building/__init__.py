"""From a config to data, a model over raw data and its training objective."""
