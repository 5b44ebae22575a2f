import _deaths


class Body:
    _deaths.segfault()
