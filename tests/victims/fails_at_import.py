"""Raises while it is imported, with a cause, from a function of its own."""


def read_settings():
    try:
        return {}["backend"]
    except KeyError as error:
        raise RuntimeError("no backend is configured") from error


settings = read_settings()
