/* Decodes parts of JPEGs, sound and damaged, with both Huffman decoders, and prints how many
   (1) sound ones there were, (2) of them ours read and both agree, (3) damaged ones, (4) of them ours did not
   give up, (5) of all, those that differ in outcome or in a pixel. Arguments: rounds of damage, files. */

#include <stdint.h>
#include <stdlib.h>

#include "../../pipeline/region.c"

static uint64_t state = 88172645463325252u;

static long below(long count) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (long)(state % (uint64_t)count);
}

static void damage(unsigned char *data, long *num_bytes) {
    long first = below(3) ? *num_bytes / 4 : 2; /* mostly behind the headers */
    for (long i = below(4); i > 0; i--) {
        unsigned char *at = data + first + below(*num_bytes - first - 12);
        unsigned char values[] = {*at ^ 1 << below(8), 0, below(256)};
        *at = values[below(3)];
        if (!below(4)) at[0] = 255, at[1] = 0xD0 + below(8); /* a restart where there are none */
        if (!below(4)) memcpy(at, "\xff\0\xff\0\xff\0\xff\0\xff\0\xff", 12); /* so many ones are no code */
    }
    if (!below(4)) *num_bytes -= below(below(2) ? 20 : *num_bytes / 2);
}

/* Returns 1 if ours was used, 2 if the decoders differ. */
static int compare(const unsigned char *data, long num_bytes, int shrink, int left, int top, int width, int height) {
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
    int told = outcome[1] != GAVE_UP;
    if (told && outcome[0] != outcome[1]) told = 2;
    for (int row = 0; told == 1 && outcome[0] == DONE && row < height; row++) {
        long start = row * row_bytes + 4 * (left - first[0]);
        if (first[0] != first[1] || memcmp(pixels[0] + start, pixels[1] + start, 4 * width)) told = 2;
    }
    free(pixels[0]), free(pixels[1]);
    return told;
}

static enum outcome decode_corner(const unsigned char *data, long num_bytes) {
    static unsigned char pixels[2 * 4 * (1 + 256)];
    char message[JMSG_LENGTH_MAX];
    int first;
    return decode(1, data, num_bytes, 1, 0, 0, 1, 1, pixels, 4 * (1 + 256), &first, message);
}

/* Returns whether ours is the one that decodes, a picture whose tables were seen before: with tables that know no code
   it gives up. */
static int is_ours(const unsigned char *data, long num_bytes) {
    struct code_table *tables[] = {dc_tables, ac_tables};
    decode_corner(data, num_bytes);
    for (int i = 0; i < 2 * NUM_HUFF_TBLS; i++)
        for (int j = 0; j < 1 << LOOK_BITS; j++) tables[i / NUM_HUFF_TBLS][i % NUM_HUFF_TBLS].looks[j] = STEP_NONE << 8;
    enum outcome outcome = decode_corner(data, num_bytes);
    memset(dc_tables, 0, sizeof dc_tables);
    memset(ac_tables, 0, sizeof ac_tables);
    return outcome == GAVE_UP;
}

int main(int count, char **arguments) {
    long sound = 0, read = 0, damaged = 0, told = 0, different = 0;
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
            int result = compare(exact, num_bytes, shrink, left, top, width, height);
            *(round ? &damaged : &sound) += 1;
            *(round ? &told : &read) += result == 1 && (round || is_ours(exact, num_bytes));
            different += result == 2;
            free(exact), free(data);
        }
        fclose(file);
    }
    printf("%ld %ld %ld %ld %ld\n", sound, read, damaged, told, different);
    return 0;
}
