"""The version of the package, where it can be imported without the package's public names."""

__version__ = "0.1.0"
