/* The average of each of 64x64 equal parts of a grey picture, in integers: the same on every machine.
   Called by shrink.py through ctypes, which gives the GIL back meanwhile. */

#include <stdint.h>
#include <string.h>

enum { SIDE = 64, UNITS = 256 }; /* parts a side; units of an answer in one step of grey */

/* Adds a row of grey values, times a weight of at most 64, to the sums of its columns. */
#ifdef __x86_64__
__attribute__((target_clones("default", "avx2")))
#endif
static void add_row(uint32_t *restrict sums, const uint8_t *restrict row, long width, uint16_t weight) {
    for (long x = 0; x < width; x++) sums[x] += (uint16_t)(row[x] * weight);
}

/* Sum of the columns left of `edge`, which is in 64ths of a column. */
static uint64_t until(const uint64_t *before, const uint32_t *sums, uint64_t edge) {
    uint64_t column = edge / SIDE, part = edge % SIDE;
    return SIDE * before[column] + (part ? part * sums[column] : 0);
}

/* Writes 64x64 averages, in 256ths, of `height` rows (64 to 65535) of `width` values (likewise).
   `sums` holds `width` numbers, `before` one more: memory of the caller. */
void bit_average_64(const uint8_t *grey, long height, long width, uint32_t *sums, uint64_t *before, uint16_t *out) {
    /* A part is `height` 64ths of a row high and `width` 64ths of a column wide, so all weights are whole. */
    uint64_t whole = (uint64_t)height * width;
    for (long i = 0; i < SIDE; i++) {
        long top = i * height, bottom = top + height; /* in 64ths of a row */
        memset(sums, 0, width * sizeof *sums);
        for (long y = top / SIDE; y * SIDE < bottom; y++) {
            long first = y * SIDE > top ? y * SIDE : top, last = (y + 1) * SIDE < bottom ? (y + 1) * SIDE : bottom;
            add_row(sums, grey + y * width, width, (uint16_t)(last - first));
        }
        before[0] = 0;
        for (long x = 0; x < width; x++) before[x + 1] = before[x] + sums[x];
        uint64_t left = 0;
        for (long j = 0; j < SIDE; j++) {
            uint64_t right = until(before, sums, (uint64_t)(j + 1) * width);
            *out++ = (uint16_t)((2 * UNITS * (right - left) + whole) / (2 * whole));
            left = right;
        }
    }
}
