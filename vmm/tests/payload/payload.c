/* A guest that does what its command line says and reports on COM1. It runs in ring 3 and polls: no interrupts. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define COM1 0x3f8
#define PM1_STATUS 0x600
#define PM1_CONTROL 0x604
#define RESET_REGISTER 0x608
#define POWER_BUTTON 0x100
#define S5 (0x2000 | (5 << 10))

static inline void outb(u16 port, u8 v) { __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port)); }
static inline void outw(u16 port, u16 v) { __asm__ volatile("outw %0, %1" ::"a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u16 inw(u16 port) { u16 v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u64 rdtsc(void) { u32 a, d; __asm__ volatile("rdtsc" : "=a"(a), "=d"(d)); return ((u64)d << 32) | a; }

static void put(char c) { outb(COM1, c); }
static void print(const char *s) { while (*s) put(*s++); }
static void number(u64 n) {
    char digits[21], *p = digits + 20;
    for (*p = 0; p == digits + 20 || n; n /= 10) *--p = '0' + n % 10;
    print(p);
}
static void line(const char *what, u64 n) { print(what); put(' '); number(n); put('\n'); }

static const char *word(const char *cmdline, const char *name) {
    for (const char *p = cmdline; *p; p++) {
        if (p != cmdline && p[-1] != ' ') continue;
        const char *n = name, *q = p;
        while (*n && *n == *q) n++, q++;
        if (!*n && (*q == 0 || *q == ' ' || *q == '=')) return *q == '=' ? q + 1 : q;
    }
    return 0;
}
static u64 value(const char *p) {
    u64 n = 0;
    while (p && *p >= '0' && *p <= '9') n = n * 10 + *p++ - '0';
    return n;
}

static void off(void) { for (;;) outw(PM1_CONTROL, S5); }
static void wait_cycles(u64 n) { for (u64 end = rdtsc() + n; rdtsc() < end;) __asm__ volatile("pause"); }

static void echo(void) {
    for (;;) {
        while (!(inb(COM1 + 5) & 1)) __asm__ volatile("pause");
        u8 c = inb(COM1);
        if (c == 'q') off();
        if (c == 'r') outb(RESET_REGISTER, 1);
        if (c == 'k') outb(0x64, 0xfe);
        if (c == 'c') outb(0xcf9, 6);
        if (c == 'f') __asm__ volatile("ud2");
        put(c);
    }
}

/* A guest with manners: answers each byte with the next one, and switches itself off when its power button is pressed. */
static void serve(void) {
    print("serving\n");
    for (;;) {
        if (inw(PM1_STATUS) & POWER_BUTTON) { outw(PM1_STATUS, POWER_BUTTON); print("going down\n"); off(); }
        if (inb(COM1 + 5) & 1) put(inb(COM1) + 1);
    }
}

static void dirty(u64 mib) {
    u64 *from = (u64 *)(16UL << 20), *to = (u64 *)((16UL + mib) << 20);
    for (u64 *p = from; p < to; p += 8) *p = (u64)p * 0x9e3779b97f4a7c15UL;
    for (u64 *p = from; p < to; p += 8)
        if (*p != (u64)p * 0x9e3779b97f4a7c15UL) { line("wrong", (u64)p); off(); }
    line("dirtied", mib);
}

extern u8 ap_code[], ap_code_end[];
static void smp(u64 cpus) {
    volatile u32 *icr_low = (u32 *)0xfee00300UL, *counter = (u32 *)0x9000UL;
    for (u64 i = 0; i < (u64)(ap_code_end - ap_code); i++) ((volatile u8 *)0x8000UL)[i] = ap_code[i];
    *counter = 1;
    *(volatile u32 *)0xfee000f0UL |= 0x100;
    *icr_low = 0x000c4500; /* INIT to all but self */
    wait_cycles(20000000);
    *icr_low = 0x000c4608; /* SIPI, vector 8 */
    wait_cycles(1000000);
    *icr_low = 0x000c4608;
    for (u64 tries = 0; tries < 2000 && *counter < cpus; tries++) wait_cycles(2000000);
    line("cpus", *counter);
    for (u64 id = 0; id < 256; id++) if (((volatile u8 *)0xa000UL)[id]) line("apic", id);
    print("counted\n");
}

struct start_info { u32 magic, version, flags, modules; u64 modlist, cmdline, rsdp, memmap; u32 entries, reserved; };
struct module { u64 address, size, cmdline, reserved; };

#include "virtio.h"
#include "cpu.h"

#include "check.h"

/* Survives a reset: the loader writes nothing there. */
static volatile u64 *const boots = (u64 *)0x900000UL;

void payload(struct start_info *info) {
    const char *cmdline = (const char *)info->cmdline;
    *boots = *boots + 1;
    line("boot", *boots);
    if (word(cmdline, "module") && info->modules == 1) {
        struct module *m = (struct module *)info->modlist;
        print("module ");
        for (u64 i = 0; i < m->size; i++) put(((char *)m->address)[i]);
        put('\n');
    }
    if (word(cmdline, "rsdp")) {
        print("rsdp ");
        for (int i = 0; i < 8; i++) put(((char *)info->rsdp)[i]);
        put('\n');
    }
    if (word(cmdline, "dirty")) dirty(value(word(cmdline, "dirty")));
    if (word(cmdline, "disk")) disk();
    if (word(cmdline, "bad-chain")) bad_chain();
    if (word(cmdline, "entropy")) entropy();
    if (word(cmdline, "load")) disk_load(value(word(cmdline, "load")), value(word(cmdline, "blocks")));
    if (word(cmdline, "check")) check(value(word(cmdline, "check")), value(word(cmdline, "blocks")));
    if (word(cmdline, "smp")) smp(value(word(cmdline, "smp")));
    if (word(cmdline, "cpuid")) { tell_cpuid(); tell_xsetbv(); print("told\n"); }
    if (word(cmdline, "crash")) __asm__ volatile("ud2");
    if (word(cmdline, "spam")) for (u64 n = value(word(cmdline, "spam")); n; n--) line("spam", n);
    if (word(cmdline, "idle")) for (;;) { inb(0x80); wait_cycles(200000000); }
    if (word(cmdline, "beat")) for (u64 n = 1;; n++) { line("beat", n); wait_cycles(20000000); }
    if (word(cmdline, "button")) {
        print("waiting\n");
        while (!(inw(PM1_STATUS) & POWER_BUTTON)) __asm__ volatile("pause");
        outw(PM1_STATUS, POWER_BUTTON);
        print((inw(PM1_STATUS) & POWER_BUTTON) ? "stuck\n" : "pressed\n");
    }
    if (word(cmdline, "serve")) serve();
    if (word(cmdline, "echo")) { print("ready\n"); echo(); }
    off();
}
