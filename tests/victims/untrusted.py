# untrusted code lives here
import os


def ls_root():
    return os.listdir("/")
