/* Huffman decoding of baseline JPEGs in place of libjpeg's, where reading a photo spends most of its time.

   One look into a table returns a coefficient with its value, and the bits come from a copy without stuffed bytes, in
   which nothing has to be watched. It knows sound data only: at anything else it calls `give_up`, and the caller
   decodes again with libjpeg alone, which decides what damage means. README.md holds the threat model. */

#include <stdint.h>

#ifndef JPEG_INTERNALS

struct huffman {
    int unused;
};

static int take_over(j_decompress_ptr info, struct huffman *h, void (*give_up)(j_decompress_ptr)) {
    (void)info, (void)h, (void)give_up;
    return 0;
}

#else

enum {
    LOOK_BITS = 11,       /* of a code and its value, looked up at once */
    MOST_VALUE_BITS = 11, /* of a coefficient of 8-bit samples */
    LAST = DCTSIZE2 - 1,  /* coefficient of a block */
    STEP_END = 128,       /* at a block's end: a step that none has room for */
    STEP_NONE = 64,       /* no such code: likewise, and shorter */
    BLOCK_BYTES = 256,    /* more than 7 read ahead, a block's 64 codes and values of 27 bits, and a read of 8 */
    WORTH_BYTES = 8192,   /* a smaller image is decoded before tables are built for it alone */
    MOST_BYTES = 1 << 28  /* that are copied */
};

_Static_assert(offsetof(struct jpeg_entropy_decoder, decode_mcu) == sizeof(void (*)(void)),
               "jpegint.h differs from those of all known releases");
_Static_assert(7 + (DCTSIZE2 * (16 + MOST_VALUE_BITS) + 7) / 8 + 8 <= BLOCK_BYTES, "a block may be read past the copy");

/* A coefficient that the next bits hold. Bits 0..6: how many its code and its value take; 8..15: how far it lies
   ahead in the block; 16..31: its value. Where the look does not reach to the value's end, bit 7 is set and bits 16..31
   hold how many bits the value has; where it does not reach to the code's end, only bit 7 is set. */
typedef uint32_t look;
enum { SHORT = 1 << 7 };

struct code_table {
    UINT8 bits[17], symbols[256]; /* what it is built from, as in JHUFF_TBL */
    enum { UNBUILT, DC, AC } kind; /* DC: for first coefficients, which have no step; UNBUILT: no more than this */
    int32_t end[17];              /* one after the last code of each length, as 16 bits */
    int32_t offset[17];           /* from a code of this length to its place in `symbols` */
    look looks[1 << LOOK_BITS];
};

/* The tables that a thread has built last: most encoders write the same ones into every image. */
static _Thread_local struct code_table dc_tables[NUM_HUFF_TBLS], ac_tables[NUM_HUFF_TBLS];

struct huffman {
    const uint8_t *next, *stop; /* of the copy */
    uint64_t bits;              /* not yet used, from the highest down */
    int num_bits;               /* of them */
    unsigned last_dc[MAX_COMPS_IN_SCAN];
    void (*give_up)(j_decompress_ptr);
};

/* Returns the value of 1 bit or more at the front of `bits`: one that begins with 0 is negative. */
static inline uint32_t value_of(int value_bits, uint64_t bits) {
    return (uint32_t)(bits >> (64 - value_bits)) - (((1u << value_bits) - 1) & ((uint32_t)(bits >> 63) - 1));
}

/* Returns the look of a symbol without its value, where it has one. */
static inline look step_of(int is_dc, int symbol, int code_bits) {
    int run = symbol >> 4, value_bits = symbol & 15;
    int step = is_dc ? 0 : value_bits || run == 15 ? run + 1 : STEP_END; /* 15 zeros and no value: 16 zeros */
    return (look)step << 8 | (code_bits + value_bits);
}

/* Returns whether every symbol is one of an 8-bit image. libjpeg has checked the codes themselves. */
static int is_usual(int is_dc, const JHUFF_TBL *given) {
    int place = 0;
    for (int length = 1; length <= 16; length++)
        for (int i = 0; i < given->bits[length]; i++) {
            int symbol = given->huffval[place++], value_bits = symbol & 15;
            if (value_bits > MOST_VALUE_BITS || (is_dc ? symbol > 15 : !value_bits && symbol && symbol != 0xF0))
                return 0;
        }
    return 1;
}

static int is_of(const struct code_table *table, const JHUFF_TBL *given) {
    return !memcmp(table->bits, given->bits, sizeof table->bits) &&
           !memcmp(table->symbols, given->huffval, sizeof table->symbols);
}

/* Writes the looks that begin with a code of `code_bits`. */
static void build_looks(look *first, int is_dc, int symbol, int code_bits) {
    int value_bits = symbol & 15, rest_bits = LOOK_BITS - code_bits - value_bits;
    look step = step_of(is_dc, symbol, code_bits);
    if (rest_bits < 0) {
        for (int i = 0; i < 1 << (LOOK_BITS - code_bits); i++) first[i] = (look)value_bits << 16 | step | SHORT;
        return;
    }
    for (uint64_t i = 0; i < 1ull << value_bits; i++) {
        look one = step | (value_bits ? value_of(value_bits, i << (64 - value_bits)) << 16 : 0);
        for (int j = 0; j < 1 << rest_bits; j++) *first++ = one;
    }
}

static void build_table(struct code_table *table, int is_dc, const JHUFF_TBL *given) {
    int32_t code = 0;
    int place = 0;
    table->kind = is_dc ? DC : AC;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        table->offset[length] = place - code;
        for (int i = 0; i < given->bits[length]; i++, code++, place++)
            if (length <= LOOK_BITS)
                build_looks(table->looks + (code << (LOOK_BITS - length)), is_dc, given->huffval[place], length);
        table->end[length] = code << (16 - length);
    }
    for (int i = table->end[LOOK_BITS] >> (16 - LOOK_BITS); i < 1 << LOOK_BITS; i++) table->looks[i] = SHORT;
}

static inline __attribute__((always_inline)) void refill(struct huffman *h) {
    uint64_t word;
    memcpy(&word, h->next, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    h->bits |= word >> h->num_bits;
    h->next += (63 - h->num_bits) >> 3;
    h->num_bits |= 56;
}

/* Completes a look that was too short. */
static __attribute__((noinline)) look look_longer(const struct code_table *table, look found, uint64_t bits) {
    int value_bits = found >> 16, code_bits = (found & (SHORT - 1)) - value_bits;
    for (int length = LOOK_BITS + 1; found == SHORT; length++) {
        if (length > 16) return STEP_NONE << 8;
        int32_t code = (int32_t)(bits >> 48);
        if (code >= table->end[length]) continue;
        int symbol = table->symbols[(code >> (16 - length)) + table->offset[length]];
        found = step_of(table->kind == DC, symbol, length);
        value_bits = symbol & 15, code_bits = length;
    }
    look value = value_bits ? value_of(value_bits, bits << code_bits) : 0;
    return value << 16 | (found & 0xffff & ~SHORT);
}

/* Takes the next coefficient; 27 bits must be there. */
static inline __attribute__((always_inline)) look take(struct huffman *h, const struct code_table *table) {
    look found = table->looks[h->bits >> (64 - LOOK_BITS)];
    if (__builtin_expect(found & SHORT, 0)) found = look_longer(table, found, h->bits);
    h->bits <<= found & 63;
    h->num_bits -= found & 63;
    return found;
}

/* Place of each coefficient, in the order of the file, in its block. */
static const uint8_t PLACES[DCTSIZE2] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

/* Reads a later coefficient of a block of zeros, or past it if `block` is NULL. Returns whether there may be more. */
static inline __attribute__((always_inline)) int decode_next(struct huffman *h, const struct code_table *ac,
                                                             JCOEF *block, unsigned *place) {
    look found = take(h, ac);
    *place += found >> 8 & 255;
    if (__builtin_expect(*place > LAST, 0)) return 0;
    if (block) block[PLACES[*place]] = (JCOEF)(found >> 16);
    return *place != LAST;
}

/* Reads a block. Returns whether it was sound. */
static inline __attribute__((always_inline)) int decode_block(struct huffman *h, const struct code_table *dc,
                                                              const struct code_table *ac, unsigned *last_dc,
                                                              JCOEF *block) {
    refill(h);
    look found = take(h, dc);
    if (__builtin_expect(found >> 8 & 255, 0)) return 0;
    *last_dc += (int32_t)found >> 16;
    if (block) block[0] = (JCOEF)*last_dc;
    unsigned place = 0;
    do refill(h); /* 56 bits: enough for two */
    while (decode_next(h, ac, block, &place) && decode_next(h, ac, block, &place));
    return place == LAST || place >= STEP_END;
}

/* As libjpeg's decode_mcu: fills the blocks of one unit, which are zero, or skips the unit if `blocks` is NULL. */
#ifdef __x86_64__
__attribute__((target_clones("default", "bmi2")))
#endif
static boolean decode_unit(j_decompress_ptr info, JBLOCKROW *blocks) {
    struct huffman *kept = info->client_data, h = *kept;
    for (int i = 0; i < info->blocks_in_MCU; i++) {
        int component = info->MCU_membership[i];
        const jpeg_component_info *about = info->cur_comp_info[component];
        const struct code_table *dc = dc_tables + about->dc_tbl_no, *ac = ac_tables + about->ac_tbl_no;
        int sound = decode_block(&h, dc, ac, kept->last_dc + component, blocks ? *blocks[i] : NULL);
        if (!sound || (h.next > h.stop && (h.next - h.stop) * 8 > h.num_bits)) h.give_up(info);
    }
    kept->next = h.next, kept->bits = h.bits, kept->num_bits = h.num_bits;
    return TRUE;
}

/* Copies one scan's data up to the next marker, without the zero after each byte of 255. Returns where the copy ends,
   or NULL if there is no marker: then the file is cut short. */
static uint8_t *unstuffed(const uint8_t *data, size_t num_bytes, uint8_t *out) {
    const uint8_t *stop = data + num_bytes, *mark;
    while ((mark = memchr(data, 0xFF, stop - data)) && mark + 1 < stop) {
        memcpy(out, data, mark - data);
        out += mark - data;
        if (mark[1]) {
            memset(out, 0, BLOCK_BYTES);
            return out;
        }
        *out++ = 0xFF;
        data = mark + 2;
    }
    return NULL;
}

/* Prepares the tables of the scan, and returns whether they are ready. Those of a small image are remembered, and built
   as soon as another one has the same. */
static int have_tables(j_decompress_ptr info, size_t num_bytes) {
    int are_ready = 1;
    for (int i = 0; i < 2 * info->comps_in_scan; i++) {
        const jpeg_component_info *about = info->cur_comp_info[i / 2];
        int is_dc = i % 2, number = is_dc ? about->dc_tbl_no : about->ac_tbl_no;
        const JHUFF_TBL *given = (is_dc ? info->dc_huff_tbl_ptrs : info->ac_huff_tbl_ptrs)[number];
        struct code_table *table = (is_dc ? dc_tables : ac_tables) + number;
        if (!is_of(table, given)) {
            table->kind = UNBUILT;
            memcpy(table->bits, given->bits, sizeof table->bits);
            memcpy(table->symbols, given->huffval, sizeof table->symbols);
            are_ready &= num_bytes >= WORTH_BYTES;
        }
        if (are_ready && table->kind == UNBUILT) {
            if (!is_usual(is_dc, given)) return 0;
            build_table(table, is_dc, given);
        }
    }
    return are_ready;
}

/* Takes over from libjpeg, which has read up to the data of the first scan and checked its tables, if the scan is of
   the usual kind: all of every block (a lossless one has no blocks, and unchecked tables). Returns whether it did.
   `entropy->decode_mcu` is all that it uses of libjpeg's private structs. */
static int take_over(j_decompress_ptr info, struct huffman *h, void (*give_up)(j_decompress_ptr)) {
    size_t num_bytes = info->src->bytes_in_buffer;
    if (info->progressive_mode || info->arith_code || info->restart_interval || info->data_precision != 8 ||
        info->Ss != 0 || info->Se != LAST || num_bytes > MOST_BYTES ||
        info->comps_in_scan != info->num_components || !have_tables(info, num_bytes))
        return 0;
    uint8_t *copy = info->mem->alloc_large((j_common_ptr)info, JPOOL_IMAGE, num_bytes + BLOCK_BYTES);
    const uint8_t *stop = unstuffed(info->src->next_input_byte, num_bytes, copy);
    if (!stop) return 0;
    *h = (struct huffman){.next = copy, .stop = stop, .give_up = give_up};
    info->client_data = h;
    info->entropy->decode_mcu = decode_unit;
    return 1;
}

#endif
