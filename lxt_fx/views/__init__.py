"""The views of an explanation: HTML page, PNG and PDF figure, terminal."""
