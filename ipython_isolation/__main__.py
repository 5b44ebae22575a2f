"""``python -m ipython_isolation install|uninstall``; see `ipython_isolation.install`."""

from .install import main

if __name__ == "__main__":
    main()
