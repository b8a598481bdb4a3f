/* A guest that notices when it is not brought back exactly as it was: its memory, its disk, its clocks. */

static u8 cmos(u8 at) { outb(0x70, at); return inb(0x71); }
/* Seconds since midnight, by the PC's clock (BCD). */
static u64 time_of_day(void) {
    u64 seconds = 0;
    for (int i = 0; i < 3; i++) { u8 v = cmos(4 - 2 * i); seconds = seconds * 60 + (v >> 4) * 10 + (v & 15); }
    return seconds;
}

#define WORDS (1UL << 17)
static u64 generation[1024];
static u64 *mebibyte(u64 n) { return (u64 *)((16UL + n) << 20); }
static u64 expected(u64 *p, u64 n) { return ((u64)p + generation[n]) * 0x9e3779b97f4a7c15UL; }
static void write_memory(u64 n) { for (u64 *p = mebibyte(n), *end = p + WORDS; p < end; p++) *p = expected(p, n); }
static void read_memory(u64 n) {
    for (u64 *p = mebibyte(n), *end = p + WORDS; p < end; p++)
        if (*p != expected(p, n)) { line("wrong memory", (u64)p); off(); }
}

/* Each round changes one MiB and one block, after it has read what an earlier round left there. Never ends. */
static void check(u64 mib, u64 blocks) {
    struct virtio d = start(2);
    u64 before = rdtsc();
    for (u64 n = 0; n < mib; n++) write_memory(n);
    for (u64 round = 1;; round++) {
        u64 n = round % mib, sector = 8 * (round % blocks);
        read_memory(n);
        generation[n] = round;
        write_memory(n);
        if (round > blocks) {
            if (ask(&d, 0, sector, 4096)) { line("failed read", round); off(); }
            for (u64 i = 0; i < 512; i++)
                if (((u64 *)sectors[0])[i] != (round - blocks) * 512 + i) { line("wrong disk", sector); off(); }
        }
        for (u64 i = 0; i < 512; i++) ((u64 *)sectors[0])[i] = round * 512 + i;
        if (ask(&d, 1, sector, 4096)) { line("failed write", round); off(); }
        u64 now = rdtsc();
        if (now < before) { line("wrong clock", before - now); off(); }
        before = now;
        line("tsc", now);
        line("day", time_of_day());
        line("round", round);
    }
}
