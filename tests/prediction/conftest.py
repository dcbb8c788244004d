"""A finished run, and an entry of the zoo made of it, for the models that are loaded by a name."""

from __future__ import annotations

from tests.tiny.zoo import own_zoo as own_zoo
from tests.tiny.zoo import tiny_entry as tiny_entry
from tests.tiny.zoo import zoo_run as zoo_run
