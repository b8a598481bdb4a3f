/* What the processor says of itself in ring 0: a hypervisor that runs ring 3 natively may be unable to change what CPUID says there. */

static inline void cpuid(u32 f, u32 i, u32 *r) {
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(f), "c"(i));
}

static struct { u32 function, index, r[4]; } answers[] = {
    {0, 0}, {1, 0}, {7, 0}, {0xb, 0}, {0xb, 1}, {0xd, 0}, {0x80000001, 0}, {0x80000002, 0}, {0x80000008, 0}, {0x40000001, 0},
};
#define ANSWERS (sizeof answers / sizeof *answers)
static struct { u32 value, fault; } trials[] = {{3}, {7}, {0xe7}, {0x207}};
#define TRIALS (sizeof trials / sizeof *trials)

/* In entry.S: both note their number and step over an instruction of three bytes. */
extern u8 fault_6[], fault_13[];
volatile u32 fault;

static void gate(u64 *idt, int vector, u8 *to) {
    u64 at = (u64)to;
    idt[2 * vector] = (at & 0xffff) | 0x8UL << 16 | 0x8e00UL << 32 | (at >> 16 & 0xffff) << 48;
    idt[2 * vector + 1] = at >> 32;
}

static void load_idt(u64 *idt, u16 limit) {
    struct { u16 limit; u64 base; } __attribute__((packed)) pointer = {limit, (u64)idt};
    __asm__ volatile("lidt %0" ::"m"(pointer));
}

/* Tries to switch on XSAVE components: 0 when it could be done, else the exception. */
static void try_xsetbv(void) {
    static u64 idt[28] __attribute__((aligned(16)));
    u32 one[4];
    gate(idt, 6, fault_6);
    gate(idt, 13, fault_13);
    load_idt(idt, sizeof idt - 1);
    cpuid(1, 0, one);
    if (one[2] >> 26 & 1) {
        u64 cr4;
        __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
        __asm__ volatile("mov %0, %%cr4" ::"r"(cr4 | 1 << 18));
    }
    for (u32 n = 0; n < TRIALS; n++) {
        fault = 0;
        __asm__ volatile("xsetbv" ::"a"(trials[n].value), "d"(0), "c"(0) : "memory");
        trials[n].fault = fault;
    }
    load_idt(idt, 0);
}

/* Before ring 3. */
void ring0(struct start_info *info) {
    const char *cmdline = (const char *)info->cmdline;
    if (word(cmdline, "cpuid"))
        for (u32 n = 0; n < ANSWERS; n++) cpuid(answers[n].function, answers[n].index, answers[n].r);
    if (word(cmdline, "xsetbv")) try_xsetbv();
}

static void tell_cpuid(void) {
    for (u32 n = 0; n < ANSWERS; n++) {
        print("cpuid ");
        number(answers[n].function);
        put(' ');
        number(answers[n].index);
        for (int r = 0; r < 4; r++) { put(' '); number(answers[n].r[r]); }
        put('\n');
    }
}
static void tell_xsetbv(void) {
    for (u32 n = 0; n < TRIALS; n++) { print("xsetbv "); number(trials[n].value); line("", trials[n].fault); }
}
