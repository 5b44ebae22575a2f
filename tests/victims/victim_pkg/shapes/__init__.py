from .square import Square

__all__ = ["Square"]
