"""``make bench``: all benchmarks."""

import sys

import latency

if __name__ == "__main__":
    latency.main(sys.argv[1:])
