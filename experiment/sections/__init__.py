"""The tables of a config file, one small frozen class per kind."""
