"""``python -m ipython_isolation install|uninstall|replay``; see `ipython_isolation.install` and `.bundle`."""

import sys


def main():
    """Runs the command that the first argument names."""
    if sys.argv[1:2] == ["replay"]:
        from .bundle import main as replay

        sys.exit(replay(sys.argv[2:]))
    from .install import main as install

    install()


if __name__ == "__main__":
    main()
