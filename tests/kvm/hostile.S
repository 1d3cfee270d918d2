/* Entry of the hostile kernel, both processors': in long mode, on a stack of its own, then C. */
	.section .text.start, "ax"
	.globl _start
_start:
	cli
	mov	$stack_end, %esp
	mov	%esi, %edi		/* the zero page (Linux, Documentation/arch/x86/boot.rst) */
	call	main
1:	cli
	hlt
	jmp	1b

/* Copied below 1 MiB for the second processor, which starts in real mode at its first byte. */
	.globl	trampoline, trampoline_end
	.code16
trampoline:
	cli
	mov	%cs, %ax
	mov	%ax, %ds
	lgdtl	gdt_pointer - trampoline
	mov	$0x20, %eax		/* PAE */
	mov	%eax, %cr4
	mov	$0x9000, %eax		/* the page tables that pyvmm made */
	mov	%eax, %cr3
	mov	$0xc0000080, %ecx	/* EFER.LME */
	xor	%edx, %edx
	mov	$0x100, %eax
	wrmsr
	mov	$0x80000011, %eax	/* PG, ET, PE */
	mov	%eax, %cr0
	ljmpl	$8, $second
	.balign 8
gdt_pointer:
	.word	31
	.long	0x500
trampoline_end:

	.code64
second:
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$second_stack_end, %esp
	call	second_main
1:	cli
	hlt
	jmp	1b

	.bss
	.globl	stack_end
	.balign 16
	.skip	16384
stack_end:
	.skip	16384
second_stack_end:

	.section .note.GNU-stack, "", @progbits
