/* Decodes parts of JPEGs, sound and damaged, with both Huffman decoders, and prints how many
   (1) sound ones there were, (2) of them ours read, (3) damaged ones, (4) of them ours read without giving up,
   (5) of all, those that differ in outcome or in a pixel. Arguments: rounds of damage, files.

       cc -g -O1 -fsanitize=address,undefined -o check huffman_check.c -ljpeg && ./check 1000 PHOTO... */

#include <stdint.h>
#include <stdlib.h>

#include "../../../../pipeline/image/jpeg_region/region.c"

#ifndef JPEG_INTERNALS
#error "no jpegint.h: libjpeg decodes alone here"
#endif

static uint64_t state = 88172645463325252u;

static long below(long count) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (long)(state % (uint64_t)count);
}

static void damage(unsigned char *data, long *num_bytes) {
    long first = below(3) ? *num_bytes / 4 : 2; /* mostly behind the headers */
    int is_cut = !below(4);
    for (long i = is_cut ? below(4) : 1 + below(3); i > 0; i--) {
        unsigned char *at = data + first + below(*num_bytes - first - 12);
        unsigned char values[] = {*at ^ 1 << below(8), ~*at, *at + 1 + below(255)};
        *at = values[below(3)];
        if (!below(4)) at[0] = 255, at[1] = 0xD0 + below(8); /* a restart where there are none */
        if (!below(4)) memcpy(at, "\xff\0\xff\0\xff\0\xff\0\xff\0\xff", 12); /* so many ones are no code */
    }
    if (is_cut) *num_bytes -= 1 + below(below(2) ? 20 : *num_bytes / 2);
}

enum verdict { SAME, LEFT, DIFFERENT }; /* LEFT: ours gave up */

static enum verdict compare(const unsigned char *data, long num_bytes, int shrink, int left, int top, int width,
                            int height) {
    long row_bytes = 4 * (width + 256);
    unsigned char *pixels[2];
    int first[2] = {0};
    enum outcome outcome[2];
    char message[JMSG_LENGTH_MAX];
    for (int fast = 0; fast < 2; fast++) {
        pixels[fast] = calloc(height + 1, row_bytes);
        outcome[fast] = decode(fast, data, num_bytes, shrink, left, top, width, height, pixels[fast], row_bytes,
                               first + fast, message);
    }
    enum verdict verdict = outcome[1] == GAVE_UP ? LEFT : outcome[0] == outcome[1] ? SAME : DIFFERENT;
    for (int row = 0; verdict == SAME && outcome[0] == DONE && row < height; row++) {
        long start = row * row_bytes + 4 * (left - first[0]);
        if (first[0] != first[1] || memcmp(pixels[0] + start, pixels[1] + start, 4 * width)) verdict = DIFFERENT;
    }
    free(pixels[0]), free(pixels[1]);
    return verdict;
}

static enum outcome decode_corner(const unsigned char *data, long num_bytes) {
    static unsigned char pixels[2 * 4 * (1 + 256)];
    char message[JMSG_LENGTH_MAX];
    int first;
    return decode(1, data, num_bytes, 1, 0, 0, 1, 1, pixels, 4 * (1 + 256), &first, message);
}

/* Returns whether ours decodes this picture once its tables have been seen: it gives up with tables that
   know no code. */
static int is_ours(const unsigned char *data, long num_bytes) {
    static struct code_table kept[2][NUM_HUFF_TBLS];
    decode_corner(data, num_bytes);
    memcpy(kept[0], dc_tables, sizeof dc_tables);
    memcpy(kept[1], ac_tables, sizeof ac_tables);
    for (int i = 0; i < NUM_HUFF_TBLS; i++)
        for (int j = 0; j < 1 << LOOK_BITS; j++) dc_tables[i].looks[j] = ac_tables[i].looks[j] = STEP_NONE << 8;
    enum outcome outcome = decode_corner(data, num_bytes);
    memcpy(dc_tables, kept[0], sizeof dc_tables);
    memcpy(ac_tables, kept[1], sizeof ac_tables);
    return outcome == GAVE_UP;
}

int main(int count, char **arguments) {
    long sound = 0, read = 0, damaged = 0, read_damaged = 0, different = 0;
    for (int i = 2; i < count; i++) {
        FILE *file = fopen(arguments[i], "rb");
        fseek(file, 0, SEEK_END);
        long size = ftell(file);
        for (long round = 0; round <= atol(arguments[1]); round++) {
            long num_bytes = size;
            unsigned char *data = malloc(size);
            rewind(file);
            if (fread(data, 1, size, file) != (size_t)size) return 1;
            if (round) damage(data, &num_bytes);
            unsigned char *exact = malloc(num_bytes); /* so that a byte beyond is seen */
            memcpy(exact, data, num_bytes);
            int shrink = 1 << below(4), width = 200 / shrink, height = 160 / shrink; /* pictures have 300 x 260 */
            int left = below(100 / shrink), top = below(2) ? 100 / shrink : below(100 / shrink); /* often to the end */
            enum verdict verdict = compare(exact, num_bytes, shrink, left, top, width, height);
            *(round ? &damaged : &sound) += 1;
            *(round ? &read_damaged : &read) += verdict == SAME && is_ours(exact, num_bytes);
            different += verdict == DIFFERENT;
            free(exact), free(data);
        }
        fclose(file);
    }
    printf("%ld %ld %ld %ld %ld\n", sound, read, damaged, read_damaged, different);
    return 0;
}
