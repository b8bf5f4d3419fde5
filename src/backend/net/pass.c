/* Messages with descriptors: sendmsg(2), recvmsg(2), unix(7) SCM_RIGHTS. */
#include "backend/net/pass.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

union control {
    struct cmsghdr header; /* aligns the bytes */
    char bytes[CMSG_SPACE(sizeof(int))];
};

int pass_send(int socket, char kind, const char *text, int fd)
{
    struct iovec pieces[2] = {{&kind, 1}, {(void *)text, strnlen(text, PASS_TEXT_MAX - 1)}};
    union control control = {0};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    ssize_t sent;
    do {
        sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : 0;
}

int pass_receive(int socket, struct passed *ret_passed)
{
    *ret_passed = (struct passed){.fd = -1};
    union control control = {0};
    struct iovec pieces[2] = {{&ret_passed->kind, 1}, {ret_passed->text, PASS_TEXT_MAX - 1}};
    struct msghdr message = {
        .msg_iov = pieces,
        .msg_iovlen = 2,
        .msg_control = control.bytes,
        .msg_controllen = CMSG_LEN(sizeof(int)), /* the space has room for two, with its padding */
    };
    ssize_t got;
    do {
        got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        return errno == EAGAIN ? 0 : -errno;
    }
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof(int))) {
        memcpy(&ret_passed->fd, CMSG_DATA(header), sizeof(int));
    }
    return got == 0 ? -ENOTCONN : 1;
}
