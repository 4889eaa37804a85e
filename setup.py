"""The packages: every folder with an __init__.py, also those at the top of the repository. All else is in pyproject.toml.

A list in pyproject.toml would have to name each one, and its own search finds passes/ and rule_table/ only by the symbolic
links in lxt_fx/, which an sdist does not hold.
"""

from setuptools import find_packages, setup

inside = {*find_packages("lxt_fx"), *find_packages(include=["passes", "passes.*", "rule_table", "rule_table.*"])}
setup(packages=["lxt_fx", *sorted(f"lxt_fx.{name}" for name in inside)])
