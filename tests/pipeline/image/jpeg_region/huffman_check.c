/* Decodes parts of JPEGs, sound and damaged, with both Huffman decoders, and prints how many
   (1) sound ones there were, (2) of them ours read, (3) damaged ones, (4) of them ours read,
   (5) of all, those that differ in outcome or in a pixel. Arguments: seed, rounds of damage, files. Built and run by
   fuzz.py. */

#include "../../../../pipeline/image/jpeg_region/region.c"

#include <stdint.h>
#include <stdlib.h>

#ifndef JPEG_INTERNALS
#error "no jpegint.h: libjpeg decodes alone here"
#endif

static uint64_t state; /* of xorshift64; never 0 */

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

/* Lets ours see the tables of an image: those of a small one are built when they come again. */
static void show_tables(const unsigned char *data, long num_bytes) {
    static unsigned char pixels[2 * 4 * (1 + 256)];
    char message[JMSG_LENGTH_MAX];
    int first;
    decode(1, data, num_bytes, 1, 0, 0, 1, 1, pixels, 4 * (1 + 256), &first, message);
}

enum verdict { SAME, LEFT, DIFFERENT }; /* LEFT: ours did not read it */

static enum verdict compare(const unsigned char *data, long num_bytes, int shrink, int left, int top, int width,
                            int height) {
    long row_bytes = 4 * (width + 256);
    unsigned char *pixels[2];
    int first[2] = {0};
    enum outcome outcome[2];
    char message[JMSG_LENGTH_MAX];
    show_tables(data, num_bytes);
    for (int ours = 0; ours < 2; ours++) {
        pixels[ours] = calloc(height + 1, row_bytes);
        outcome[ours] = decode(ours, data, num_bytes, shrink, left, top, width, height, pixels[ours], row_bytes,
                               first + ours, message);
    }
    enum verdict verdict = DIFFERENT;
    if (outcome[0] == BY_LIBJPEG && outcome[1] == BY_OURS) verdict = SAME;
    if (outcome[0] == outcome[1] || outcome[1] == GAVE_UP) verdict = LEFT;
    for (int row = 0; outcome[0] == BY_LIBJPEG && outcome[1] <= BY_OURS && row < height; row++) {
        long start = row * row_bytes + 4 * (left - first[0]);
        if (first[0] != first[1] || memcmp(pixels[0] + start, pixels[1] + start, 4 * width)) verdict = DIFFERENT;
    }
    free(pixels[0]), free(pixels[1]);
    return verdict;
}

int main(int count, char **arguments) {
    long sound = 0, read = 0, damaged = 0, read_damaged = 0, different = 0;
    state = strtoull(arguments[1], NULL, 10) * 0x9E3779B97F4A7C15u + 1;
    for (int i = 3; i < count; i++) {
        FILE *file = fopen(arguments[i], "rb");
        fseek(file, 0, SEEK_END);
        long size = ftell(file);
        for (long round = 0; round <= atol(arguments[2]); round++) {
            long num_bytes = size;
            unsigned char *data = malloc(size);
            rewind(file);
            if (fread(data, 1, size, file) != (size_t)size) return 1;
            if (round) damage(data, &num_bytes);
            unsigned char *exact = malloc(num_bytes); /* so that reading a byte beyond ends the program */
            memcpy(exact, data, num_bytes);
            int shrink = 1 << below(4), width = 200 / shrink, height = 160 / shrink; /* images have 300 x 260 */
            int left = below(100 / shrink), top = below(2) ? 100 / shrink : below(100 / shrink); /* often to the end */
            enum verdict verdict = compare(exact, num_bytes, shrink, left, top, width, height);
            *(round ? &damaged : &sound) += 1;
            *(round ? &read_damaged : &read) += verdict == SAME;
            different += verdict == DIFFERENT;
            free(exact), free(data);
        }
        fclose(file);
    }
    printf("%ld %ld %ld %ld %ld\n", sound, read, damaged, read_damaged, different);
    return 0;
}
