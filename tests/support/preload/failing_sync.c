/*
 * A disk that fails to keep what it was given, without privileges: an LD_PRELOAD library.
 *
 * It does what Linux does when write-back fails (fs/sync.c, lib/errseq.c): one fdatasync or fsync of
 * the file reports EIO, what was written since the last good sync is lost, and the next call succeeds
 * as if nothing had happened. The loss shows at once here, as a hole, and not only after a remount.
 *
 *   FAILING_SYNC_DIRECTORY  files and directories below it, and no others, are concerned
 *   FAILING_SYNC_TRIGGER    a path: while a file is there, the next sync takes it away and fails;
 *                           while a directory is there, every sync fails
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_FILES 4096

static struct { dev_t device; ino_t inode; off_t durable; } files[MOST_FILES];
static int known;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int concerned(int fd) {
    const char *directory = getenv("FAILING_SYNC_DIRECTORY");
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (directory == NULL || length < 0)
        return 0;
    path[length] = 0;
    return strncmp(path, directory, strlen(directory)) == 0;
}

static int must_fail(void) {
    const char *trigger = getenv("FAILING_SYNC_TRIGGER");
    struct stat facts;
    if (trigger == NULL)
        return 0;
    if (unlink(trigger) == 0)
        return 1;
    return stat(trigger, &facts) == 0 && S_ISDIR(facts.st_mode);
}

/* How much of a file is durable. An inode number may be used again: then less is there than was. */
static off_t *durable(const struct stat *facts) {
    int i;
    for (i = 0; i < known; i++)
        if (files[i].device == facts->st_dev && files[i].inode == facts->st_ino)
            break;
    if (i == MOST_FILES)
        abort();
    if (i == known) {
        known++;
        files[i].device = facts->st_dev;
        files[i].inode = facts->st_ino;
        files[i].durable = 0;
    }
    if (files[i].durable > facts->st_size)
        files[i].durable = facts->st_size;
    return &files[i].durable;
}

static int sync_or_fail(int fd, const char *name) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    struct stat facts;
    if (!concerned(fd) || fstat(fd, &facts) != 0)
        return real(fd);
    if (!must_fail()) {
        int result = real(fd);
        pthread_mutex_lock(&lock);
        if (result == 0 && S_ISREG(facts.st_mode))
            *durable(&facts) = facts.st_size;
        pthread_mutex_unlock(&lock);
        return result;
    }
    if (S_ISREG(facts.st_mode)) {
        pthread_mutex_lock(&lock);
        off_t kept = *durable(&facts);
        pthread_mutex_unlock(&lock);
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kept, facts.st_size - kept);
    }
    errno = EIO;
    return -1;
}

int fdatasync(int fd) { return sync_or_fail(fd, "fdatasync"); }
int fsync(int fd) { return sync_or_fail(fd, "fsync"); }
