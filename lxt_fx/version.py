"""The version of this package, which pyproject.toml reads from here, and the versions that it was tested with."""

__version__ = "0.2.0"

TESTED = {"torch": "2.13.0 (2.6.0, 2.14.1 and 2.15.0 too)", "transformers": "4.52.4, 4.57.6, 5.9.0, 5.23.0 and 5.24.0"}
