/* A volume that fails as a test wants it to: preloaded before the C library, it has calls on one folder answer an error.
 *
 * LCL_VOLUME names the folder, LCL_VOLUME_CONTROL a file of one `struct fault` for each kind of call, which the test writes and every process
 * has mapped: so a volume can go away and come back while they run, after a number of calls instead of a time. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

/* In the order of `Call` in tests/src/volume.rs. */
enum call { ANY, OPEN_TO_WRITE, OPEN_TO_READ, WRITE, READ, SYNC, LINK, RENAME, RENAME_NEW, MAKE_FOLDER, REMOVE, CUT, LOCK, LOOK, LIST, BIND, ROOM, CALLS };

struct fault {
    _Atomic int error; /* 0: none */
    _Atomic int left;  /* calls that still fail; below 0: all */
    _Atomic unsigned met;
};

static struct fault *faults;
static char folder[PATH_MAX];

#define REAL(name, result, ...)                                      \
    static result (*real)(__VA_ARGS__);                              \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LCL_VOLUME"), *control = getenv("LCL_VOLUME_CONTROL");
    if (!path || !control || strlen(path) >= sizeof folder) return;
    REAL("open64", int, const char *, int, ...);
    int file = real(control, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *map = mmap(NULL, CALLS * sizeof(struct fault), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (map == MAP_FAILED) return;
    strcpy(folder, path);
    faults = map;
}

static int take(enum call call) {
    struct fault *fault = &faults[call];
    int error = atomic_load(&fault->error), left = atomic_load(&fault->left);
    if (!error) return 0;
    while (left > 0 && !atomic_compare_exchange_weak(&fault->left, &left, left - 1)) {}
    if (left == 0) return 0;
    atomic_fetch_add(&fault->met, 1);
    return error;
}

static int is_armed(enum call call) {
    return faults && (atomic_load(&faults[ANY].error) || atomic_load(&faults[call].error));
}

static int is_inside(const char *path) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

/* Whether the call fails; errno is set then. `path` as it was given, relative to `at`. */
static int fails_at(enum call call, int at, const char *path) {
    if (!path || !is_armed(call)) return 0;
    char whole[2 * PATH_MAX], link[64];
    if (strncmp(path, "/proc/self/fd/", 14) == 0) {
        at = atoi(path + 14);
        const char *rest = strchr(path + 14, '/');
        path = rest ? rest + 1 : "";
    }
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        if (at == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t length = readlink(link, whole, PATH_MAX - 1);
        if (length < 0) return 0;
        snprintf(whole + length, sizeof whole - length, "%s%s", path[0] ? "/" : "", path);
    }
    if (!is_inside(whole)) return 0;
    int error = take(ANY);
    if (!error) error = take(call);
    if (error) errno = error;
    return error != 0;
}

static int fails(enum call call, const char *path) { return fails_at(call, AT_FDCWD, path); }
static int fails_on(enum call call, int file) { return file >= 0 && fails_at(call, file, ""); }

static enum call opening(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT) ? OPEN_TO_WRITE : OPEN_TO_READ; }

#define MODE(flags) va_list list; va_start(list, flags); mode_t mode = (flags) & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; va_end(list)
#define OPEN(name)                                                   \
    int name(const char *path, int flags, ...) {                     \
        MODE(flags);                                                 \
        REAL(#name, int, const char *, int, ...);                    \
        return fails(opening(flags), path) ? -1 : real(path, flags, mode); \
    }
#define OPENAT(name)                                                 \
    int name(int at, const char *path, int flags, ...) {             \
        MODE(flags);                                                 \
        REAL(#name, int, int, const char *, int, ...);               \
        return fails_at(opening(flags), at, path) ? -1 : real(at, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *bytes, size_t count) {
    REAL("write", ssize_t, int, const void *, size_t);
    return fails_on(WRITE, file) ? -1 : real(file, bytes, count);
}
ssize_t writev(int file, const struct iovec *pieces, int count) {
    REAL("writev", ssize_t, int, const struct iovec *, int);
    return fails_on(WRITE, file) ? -1 : real(file, pieces, count);
}
ssize_t read(int file, void *bytes, size_t count) {
    REAL("read", ssize_t, int, void *, size_t);
    return fails_on(READ, file) ? -1 : real(file, bytes, count);
}
int fsync(int file) {
    REAL("fsync", int, int);
    return fails_on(SYNC, file) ? -1 : real(file);
}
int fdatasync(int file) {
    REAL("fdatasync", int, int);
    return fails_on(SYNC, file) ? -1 : real(file);
}
int link(const char *from, const char *to) {
    REAL("link", int, const char *, const char *);
    return fails(LINK, to) ? -1 : real(from, to);
}
int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    REAL("linkat", int, int, const char *, int, const char *, int);
    return fails_at(LINK, to_at, to) ? -1 : real(from_at, from, to_at, to, flags);
}
int rename(const char *from, const char *to) {
    REAL("rename", int, const char *, const char *);
    return fails(RENAME, to) ? -1 : real(from, to);
}
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    REAL("renameat2", int, int, const char *, int, const char *, unsigned);
    return fails_at(flags ? RENAME_NEW : RENAME, to_at, to) ? -1 : real(from_at, from, to_at, to, flags);
}
int mkdir(const char *path, mode_t mode) {
    REAL("mkdir", int, const char *, mode_t);
    return fails(MAKE_FOLDER, path) ? -1 : real(path, mode);
}
int unlink(const char *path) {
    REAL("unlink", int, const char *);
    return fails(REMOVE, path) ? -1 : real(path);
}
int unlinkat(int at, const char *path, int flags) {
    REAL("unlinkat", int, int, const char *, int);
    return fails_at(REMOVE, at, path) ? -1 : real(at, path, flags);
}
int rmdir(const char *path) {
    REAL("rmdir", int, const char *);
    return fails(REMOVE, path) ? -1 : real(path);
}
int ftruncate(int file, off_t length) {
    REAL("ftruncate", int, int, off_t);
    return fails_on(CUT, file) ? -1 : real(file, length);
}
int ftruncate64(int file, off64_t length) {
    REAL("ftruncate64", int, int, off64_t);
    return fails_on(CUT, file) ? -1 : real(file, length);
}
int flock(int file, int operation) {
    REAL("flock", int, int, int);
    return fails_on(LOCK, file) ? -1 : real(file, operation);
}
int statx(int at, const char *restrict path, int flags, unsigned mask, struct statx *restrict found) {
    REAL("statx", int, int, const char *, int, unsigned, struct statx *);
    return fails_at(LOOK, at, path) ? -1 : real(at, path, flags, mask, found);
}
DIR *opendir(const char *path) {
    REAL("opendir", DIR *, const char *);
    return fails(LIST, path) ? NULL : real(path);
}
int bind(int socket, const struct sockaddr *address, socklen_t length) {
    REAL("bind", int, int, const struct sockaddr *, socklen_t);
    if (address->sa_family == AF_UNIX && fails(BIND, ((const struct sockaddr_un *)address)->sun_path)) return -1;
    return real(socket, address, length);
}
/* A volume without room says so; nothing fails. */
int statvfs64(const char *path, struct statvfs64 *found) {
    REAL("statvfs64", int, const char *, struct statvfs64 *);
    int result = real(path, found);
    if (result == 0 && fails(ROOM, path)) found->f_bavail = found->f_bfree = 0;
    return result;
}
int statvfs(const char *path, struct statvfs *found) {
    REAL("statvfs", int, const char *, struct statvfs *);
    int result = real(path, found);
    if (result == 0 && fails(ROOM, path)) found->f_bavail = found->f_bfree = 0;
    return result;
}
