"""What the package offers."""

import sys

import baselines


def test_the_public_names_are_what_the_package_says():
    public = {
        name
        for name, value in vars(baselines).items()
        if not name.startswith("_") and type(value) is not type(sys)
    }
    assert public == set(baselines.__all__)
    assert len(public) == len(baselines.__all__)
