"""Python's garbage collection around imports."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_uncollected() -> Iterator[None]:
    """Import in the block without garbage collection, which takes a tenth of the time and finds nothing.

    What exists at the end of the first block is left out of all later collections, and forked processes share it.
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
            atexit.register(gc.unfreeze)  # else triton reports leaks
        gc.enable()
