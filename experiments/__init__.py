"""Results of papers, one file each: `python -m experiments list` names them, `... run NAME` reproduces one."""

from lie import _neighbours

_neighbours.refuse_strangers("experiments")
