"""``make bench``: all benchmarks."""

import sys

import latency
import recovery

if __name__ == "__main__":
    docs = [word for word in sys.argv[1:] if word == "--docs"]
    latency.main(sys.argv[1:])
    recovery.main(docs)
