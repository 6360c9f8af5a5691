"""What the process that runs are forked from does once for all of them, beside importing.

Fire asks `inspect.stack()` for its caller when a command starts. For that `inspect` looks up the file of every module
that was imported, which takes a third of the time of a short run, and remembers them.
"""

from __future__ import annotations

import inspect

import monai.bundle  # noqa: F401 (its modules are what is looked up)

inspect.stack()
