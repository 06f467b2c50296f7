"""Readers of published data files: folders in, arrays out; nothing is fetched."""
