"""Dies while it is imported, after it has said something."""

import _deaths

print("about to die", flush=True)
_deaths.segfault()
