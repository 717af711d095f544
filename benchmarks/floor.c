/* SPDX-License-Identifier: Apache-2.0
 *
 * The least that any agent has to do for a read: pread the file and send as many bytes as base64 makes of it, for that
 * is what the protocol puts on the wire and the client has to receive. Nothing is parsed or encoded.
 *
 * floor SOCKET FILE serves one client after another. A request is "OFFSET COUNT\n"; for each block of FILE the answer
 * has a third more bytes. Its last byte is a newline, as that of every contestant's answer.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    BLOCK = 96 << 10,       /* what qga reads at once, too */
    SEND_BUFFER = 1 << 20,  /* what qga asks for, too */
};

static void send_all(int client, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(client, data, size, 0);
        if (sent < 0)
            err(1, "send");
        data += sent;
        size -= sent;
    }
}

static void answer(int client, int file, off_t offset, size_t count)
{
    static char block[BLOCK + BLOCK / 3];

    while (count > 0) {
        ssize_t got = pread(file, block, count < BLOCK ? count : BLOCK, offset);
        if (got <= 0)
            err(1, "pread");
        offset += got;
        count -= got;
        size_t wire = got + got / 3;
        block[wire - 1] = count == 0 ? '\n' : 0;
        send_all(client, block, wire);
    }
}

static void serve(int client, int file)
{
    char request[64];
    ssize_t got;

    while ((got = recv(client, request, sizeof request - 1, 0)) > 0) {
        long long offset, count;
        request[got] = '\0';
        if (sscanf(request, "%lld %lld\n", &offset, &count) != 2)
            errx(1, "bad request: %s", request);
        answer(client, file, offset, count);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int size = SEND_BUFFER;
    int file, listener, client;

    if (argc != 3 || strlen(argv[1]) >= sizeof address.sun_path)
        errx(2, "usage: floor SOCKET FILE");
    strcpy(address.sun_path, argv[1]);
    file = open(argv[2], O_RDONLY);
    if (file < 0)
        err(1, "%s", argv[2]);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1) < 0)
        err(1, "%s", argv[1]);
    while ((client = accept(listener, NULL, NULL)) >= 0) {
        setsockopt(client, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        serve(client, file);
        close(client);
    }
    err(1, "accept");
}
