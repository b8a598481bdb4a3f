/* A virtio driver that polls: PCI by its ports, one queue, no interrupts. For the disk in slot 2 and the entropy device in slot 1. */

static inline void outl(u16 port, u32 v) { __asm__ volatile("outl %0, %1" ::"a"(v), "Nd"(port)); }
static inline u32 inl(u16 port) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static u32 config_read(u32 slot, u32 at) { outl(0xcf8, 0x80000000u | slot << 11 | (at & 0xfc)); return inl(0xcfc) >> 8 * (at & 3); }
static void config_write(u32 slot, u32 at, u32 v) { outl(0xcf8, 0x80000000u | slot << 11 | at); outl(0xcfc, v); }

#define QUEUE 256
struct descriptor { u64 address; u32 length; u16 flags, next; };
struct ring { u16 flags, index, entries[QUEUE], event; };
struct used { u16 flags, index; struct { u32 head, length; } entries[QUEUE]; u16 event; };
struct virtio {
    volatile u8 *common, *doorbell;
    u16 size, seen;
};
static struct descriptor descriptors[QUEUE] __attribute__((aligned(4096)));
static volatile struct ring available __attribute__((aligned(4096)));
static volatile struct used used __attribute__((aligned(4096)));

static void set8(volatile u8 *at, u8 v) { *at = v; }
static void set16(volatile u8 *at, u16 v) { *(volatile u16 *)at = v; }
static void set32(volatile u8 *at, u32 v) { *(volatile u32 *)at = v; }
static void set64(volatile u8 *at, u64 v) { set32(at, v); set32(at + 4, v >> 32); }

static struct virtio start(u32 slot) {
    struct virtio device = {0};
    u64 bar = config_read(slot, 0x10) & ~15u;
    volatile u8 *notify = 0;
    u32 multiplier = 0;
    for (u32 at = config_read(slot, 0x34) & 0xff; at; at = config_read(slot, at + 1) & 0xff) {
        if ((config_read(slot, at) & 0xff) != 9) continue;
        u32 kind = config_read(slot, at + 3) & 0xff, offset = config_read(slot, at + 8);
        if (kind == 1) device.common = (volatile u8 *)(bar + offset);
        if (kind == 2) { notify = (volatile u8 *)(bar + offset); multiplier = config_read(slot, at + 16); }
    }
    config_write(slot, 4, 6);
    volatile u8 *c = device.common;
    set8(c + 0x14, 0);
    set8(c + 0x14, 1);
    set8(c + 0x14, 3);
    set32(c, 0);
    u32 offered = *(volatile u32 *)(c + 4);
    set32(c + 8, 0);
    set32(c + 12, offered & 1 << 9);
    set32(c + 8, 1);
    set32(c + 12, 1);
    set8(c + 0x14, 11);
    set16(c + 0x16, 0);
    device.size = *(volatile u16 *)(c + 0x18);
    set64(c + 0x20, (u64)descriptors);
    set64(c + 0x28, (u64)&available);
    set64(c + 0x30, (u64)&used);
    set16(c + 0x1c, 1);
    set8(c + 0x14, 15);
    device.doorbell = notify + multiplier * *(volatile u16 *)(c + 0x1e);
    available.index = used.index = 0;
    line("status", *(c + 0x14));
    return device;
}

/* Chains `count` descriptors from `first` on, and offers them. */
static void offer(struct virtio *d, u16 first, u16 count) {
    for (u16 i = 0; i + 1 < count; i++) { descriptors[first + i].flags |= 1; descriptors[first + i].next = first + i + 1; }
    available.entries[available.index % d->size] = first;
    __asm__ volatile("" ::: "memory");
    available.index = available.index + 1;
}
static void ring(struct virtio *d) { __asm__ volatile("mfence" ::: "memory"); set16(d->doorbell, 0); }
/* Waits for the next used chain: its length, and whose it is. */
static u32 answered(struct virtio *d, u32 *head) {
    while (used.index == d->seen) __asm__ volatile("pause");
    __asm__ volatile("" ::: "memory");
    if (head) *head = used.entries[d->seen % d->size].head;
    return used.entries[d->seen++ % d->size].length;
}

struct header { u32 kind, reserved; u64 sector; };
static struct header headers[QUEUE];
static volatile u8 status_bytes[QUEUE];
static u8 sectors[QUEUE][4096] __attribute__((aligned(4096)));

static void request(struct virtio *d, u16 slot, u32 kind, u64 sector, u32 length) {
    u16 first = slot * 3;
    headers[slot] = (struct header){kind, 0, sector};
    status_bytes[slot] = 0xee;
    descriptors[first] = (struct descriptor){(u64)&headers[slot], 16, 0, 0};
    descriptors[first + 1] = (struct descriptor){(u64)sectors[slot], length, kind == 1 ? 0 : 2, 0};
    descriptors[first + 2] = (struct descriptor){(u64)&status_bytes[slot], 1, 2, 0};
    offer(d, first, 3);
}
static u8 ask(struct virtio *d, u32 kind, u64 sector, u32 length) {
    request(d, 0, kind, sector, length);
    ring(d);
    answered(d, 0);
    return status_bytes[0];
}

static void disk(void) {
    struct virtio d = start(2);
    line("read", ask(&d, 0, 3, 512));
    line("first", sectors[0][0]);
    for (int i = 0; i < 512; i++) sectors[0][i] = 0xab;
    line("write", ask(&d, 1, 5, 512));
    line("flush", ask(&d, 4, 0, 0));
    line("beyond", ask(&d, 0, 1UL << 40, 512));
    line("serial", ask(&d, 8, 0, 20));
    sectors[0][20] = 0;
    print((char *)sectors[0]);
    put('\n');
}

/* Reads random blocks for ever, `depth` at a time, and says so every 5000. */
static void disk_load(u64 depth, u64 blocks) {
    struct virtio d = start(2);
    u64 random = 1, done = 0;
    for (u16 slot = 0; slot < depth; slot++) request(&d, slot, 0, 8 * (slot % blocks), 4096);
    ring(&d);
    for (;;) {
        u32 head;
        answered(&d, &head);
        u16 slot = head / 3;
        if (status_bytes[slot]) { line("failed", status_bytes[slot]); off(); }
        u64 block = headers[slot].sector / 8;
        if (*(u64 *)sectors[slot] != block) { line("wrong", block); off(); }
        if (++done % 5000 == 0) line("served", done);
        random = random * 6364136223846793005UL + 1442695040888963407UL;
        request(&d, slot, 0, 8 * ((random >> 33) % blocks), 4096);
        if (!(used.flags & 1)) ring(&d);
    }
}

static void entropy(void) {
    struct virtio d = start(1);
    descriptors[0] = (struct descriptor){(u64)sectors[0], 64, 2, 0};
    offer(&d, 0, 1);
    ring(&d);
    line("entropy", answered(&d, 0));
    u64 ones = 0;
    for (int bit = 0; bit < 512; bit++) ones += sectors[0][bit / 8] >> bit % 8 & 1;
    print(ones > 150 && ones < 362 ? "random\n" : "not random\n");
}

/* A chain that ends nowhere, and what the device says to it. */
static void bad_chain(void) {
    struct virtio d = start(2);
    descriptors[0] = (struct descriptor){(u64)sectors[0], 16, 1, 0};
    offer(&d, 0, 1);
    ring(&d);
    while (!(*(d.common + 0x14) & 64)) __asm__ volatile("pause");
    print("needs reset\n");
    disk();
}
