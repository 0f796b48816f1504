/* The loop that one would write to sum a dump without eplb: the baseline of reading. `plain_sum DUMP FILES
 * COUNTS` reads the files rank0 to rank<FILES - 1> in pieces, and adds each count to its row: all files have
 * the same COUNTS counts, in the same order. It parses no header and checks nothing. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { PIECE = 128 << 10 };

static int fail(const char *what) {
    perror(what);
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        return 2;
    }
    const long num_files = atol(argv[2]);
    const size_t num_counts = strtoul(argv[3], NULL, 10);
    uint64_t *sums = calloc(num_counts, sizeof *sums);
    int64_t *piece = aligned_alloc(4096, PIECE);
    if (sums == NULL || piece == NULL) {
        return fail("memory");
    }
    for (long file = 0; file < num_files; file++) {
        char path[4096];
        uint64_t header = 0;
        snprintf(path, sizeof path, "%s/rank%ld.safetensors", argv[1], file);
        const int fd = open(path, O_RDONLY);
        if (fd < 0 || read(fd, &header, sizeof header) != sizeof header ||
            lseek(fd, (off_t)header, SEEK_CUR) < 0) {
            return fail(path);
        }
        size_t first = 0;
        ssize_t bytes;
        while ((bytes = read(fd, piece, PIECE)) > 0) {
            const size_t count = (size_t)bytes / sizeof *piece;
            if (count > num_counts - first) {
                return fail(path);
            }
            for (size_t i = 0; i < count; i++) {
                sums[first + i] += (uint64_t)piece[i];
            }
            first += count;
        }
        close(fd);
        if (bytes < 0 || first != num_counts) {
            return fail(path);
        }
    }
    /* Printed, so that no compiler leaves the sums out. */
    uint64_t total = 0;
    for (size_t i = 0; i < num_counts; i++) {
        total += sums[i];
    }
    printf("%llu\n", (unsigned long long)total);
    return 0;
}
