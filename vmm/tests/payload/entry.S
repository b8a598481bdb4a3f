/* The PVH entry: 32-bit, no paging. It maps the first 4 GiB one to one for ring 3, goes to long mode, and drops to ring 3 with
   all ports open, where even a hypervisor that emulates ring 0 runs code natively. */

    .section .note.pvh, "a", @note
    .long 4, 8, 18
    .asciz "Xen"
    .quad entry

    .section .text.entry, "ax"
    .code32
    .globl entry
entry:
    cld
    movl %ebx, %esi
    movl $stack_top, %esp
    /* Page tables: 7 = present, writable, user; 0x87 = large page too. */
    movl $pdpt + 7, pml4
    movl $pds + 7, %eax
    movl $pdpt, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x1000, %eax
    addl $8, %edi
    loop 1b
    movl $0x87, %eax
    movl $pds, %edi
    movl $2048, %ecx
2:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    lgdt gdt_pointer
    movl %cr0, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    ljmp $0x08, $long_mode

    .code64
long_mode:
    movw $0x10, %ax
    movw %ax, %ss
    movw $0x1b, %ax
    movw %ax, %ds
    movw %ax, %es
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    movl %esi, %edi
    pushq %rdi
    pushq %rdi
    call ring0
    popq %rdi
    popq %rdi
    /* All ports are open to ring 3 by the task's bitmap: not every hypervisor keeps the I/O privilege level in flags. */
    movl $tss, %eax
    movw %ax, gdt + 0x28 + 2
    shrl $16, %eax
    movb %al, gdt + 0x28 + 4
    movb %ah, gdt + 0x28 + 7
    movw $104, tss + 102
    movw $0x28, %ax
    ltr %ax
    pushq $0x1b
    pushq $stack_top
    pushq $0x3002
    pushq $0x23
    pushq $payload
    iretq

    .globl fault_6, fault_13
fault_6:
    movl $6, fault
    addq $3, (%rsp)
    iretq
fault_13:
    movl $13, fault
    addq $8, %rsp
    addq $3, (%rsp)
    iretq

    .globl ap_code, ap_code_end
    /* What a further processor runs: it marks its APIC id as CPUID says it (from 0xa000 on), counts itself, and rests. Copied to
       0x8000; the counter is at 0x9000. */
    .code16
ap_code:
    xorw %ax, %ax
    movw %ax, %ds
    movl $1, %eax
    cpuid
    shrl $24, %ebx
    addr32 movb $1, 0xa000(%ebx)
    lock incl 0x9000
3:  cli
    hlt
    jmp 3b
ap_code_end:

    .section .data
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    /* The task: its address is filled in, its limit covers the bitmap. */
    .quad 0x0000890000002068, 0
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

    .section .bss
    .balign 16
tss:  .skip 104 + 8192 + 8
    .balign 4096
pml4: .skip 4096
pdpt: .skip 4096
pds:  .skip 4 * 4096
    .skip 16384
stack_top:
    .section .note.GNU-stack, "", @progbits
