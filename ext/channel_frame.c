/* channel_frame.c: received frames: who owns their bytes, and who sent them. */
#define _GNU_SOURCE 1
#include "channel_parts.h"

#include "arena.h"
#include "zmq_late.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct frame *
frame_new_part(struct frame *f)
{
    struct frame *parts = realloc(f->parts, (f->nparts + 1) * sizeof *parts);
    if (parts == NULL) {
        return NULL;
    }
    f->parts = parts;
    parts[f->nparts] = (struct frame){0};
    return &parts[f->nparts++];
}

static void
tray_empty(struct tray *t)
{
    t->taken = false;
    if (t->alone) {
        free(t);
    }
}

void
tray_free(struct tray *t)
{
    if (t != NULL && t->taken) {
        t->alone = true;
        return;
    }
    free(t);
}

void
frame_free(struct frame *f)
{
    if (f->tray != NULL) { /* then it has nothing else */
        tray_empty(f->tray);
        f->tray = NULL;
        f->data = NULL;
        return;
    }
    for (size_t i = 0; i < f->nparts; i++) {
        frame_free(&f->parts[i]);
    }
    free(f->parts);
    f->parts = NULL;
    f->nparts = 0;
    if (f->owner != NULL) {
        zmq_msg_close(f->owner);
        free(f->owner);
    }
    else if (f->view != NULL) {
        extent_unref(f->view);
    }
    else if (f->block != NULL) {
        block_unref(f->block);
    }
    else {
        free(f->data);
    }
    f->owner = f->data = NULL;
    f->view = NULL;
    f->block = NULL;
}

int
frame_copy(const void *data, size_t size, struct frame *out)
{
    void *copy = malloc(size > 0 ? size : 1);
    if (copy == NULL) {
        return -1;
    }
    memcpy(copy, data, size);
    *out = (struct frame){.data = copy, .size = size};
    return 0;
}

int
frame_share(const struct frame *f, struct frame *out)
{
    if (f->view != NULL) {
        *out = *f;
        out->parts = NULL;
        out->nparts = 0;
        extent_ref(f->view);
        return 0;
    }
    if (f->owner == NULL || f->block != NULL) {
        return frame_copy(f->data, f->size, out);
    }
    zmq_msg_t *msg = malloc(sizeof *msg);
    if (msg == NULL) {
        return -1;
    }
    zmq_msg_init(msg);
    if (zmq_msg_copy(msg, f->owner) < 0) {
        free(msg);
        return -1;
    }
    *out = (struct frame){.data = zmq_msg_data(msg), .size = zmq_msg_size(msg), .owner = msg};
    return 0;
}

int
frame_peer(const struct frame *f, pid_t *pid, uid_t *uid)
{
    int fd = f->owner == NULL ? -1 : zmq_msg_get(f->owner, ZMQ_SRCFD);
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
        return -1;
    }
    *pid = peer.pid;
    *uid = peer.uid;
    return 0;
}
