/* drain.c: what the child has printed, to the session. */
#include "exchange.h"

#include <errno.h>
#include <unistd.h>

/* Passes on everything that is in the child's pipes. Keeps the first exception of the writer in
 * *parked and goes on: nothing that the child printed is lost. */
void
drain_output(PeerObject *peer, PyObject **parked)
{
    char buffer[65536];
    for (int i = 0; i < 2; i++) {
        for (;;) {
            if (peer->state == PEER_FORKED) {
                return; /* by what a writer did */
            }
            int fd = i == 0 ? process_out(peer->process) : process_err(peer->process);
            if (fd < 0) {
                break;
            }
            ssize_t n = read(fd, buffer, sizeof buffer);
            if (n < 0 && errno == EINTR) {
                continue;
            }
            if (n == 0) {
                process_close_output(peer->process, fd);
            }
            if (n <= 0) {
                break;
            }
            PyObject *none =
                PyObject_CallMethod(peer->host, "on_output", "iy#", i, buffer, (Py_ssize_t)n);
            if (none == NULL) {
                PyObject *exc = compat_take_exception();
                if (*parked == NULL) {
                    *parked = exc;
                }
                else {
                    Py_XDECREF(exc);
                }
            }
            Py_XDECREF(none);
        }
    }
}
