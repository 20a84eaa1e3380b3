"""Stands for a training: the last line that it prints is the value."""

import argparse

arguments = argparse.ArgumentParser()
arguments.add_argument("--x", type=float, required=True)
arguments.add_argument("--y", type=float, required=True)
given = arguments.parse_args()
print((given.x - 1) ** 2 + (given.y + 2) ** 2)
