"""What pyproject.toml cannot say: packages are found, and one more lies in a folder beside them."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["simpo_trainer", "simpo_trainer.*"]), "simpo_trainer._recipes"])
