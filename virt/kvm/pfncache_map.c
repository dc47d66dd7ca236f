// SPDX-License-Identifier: GPL-2.0-only
/*
 * From page frames to one kernel address, and back.
 *
 * This file is independent of caches, VMs and locks.  The caller owns the
 * struct gpc_map that gpc_map() returns until it calls gpc_unmap(), when no
 * reader may use the address any more.  No reference to a page is taken or
 * kept.  gpc_map() and gpc_unmap() may sleep, gpc_direct_address() doesn't.
 *
 * How frames are mapped depends on what they are:
 *
 *  - contiguous pages of RAM are in the direct map already, which costs
 *    nothing;
 *  - other contiguous memory, e.g. a device's memory or memory that is reserved
 *    by a kernel parameter, is mapped by memremap().  It isn't in the direct
 *    map, not even if it has struct pages because its section contains RAM
 *    elsewhere;
 *  - scattered frames are mapped by vmap() if they have a struct page, and by
 *    vmap_pfn() if they don't.
 *
 * Frames with and without a struct page cannot be mapped together, as vmap()
 * requires a struct page for all frames, and vmap_pfn() for none.
 */

#include <kunit/static_stub.h>
#include <linux/cc_platform.h>
#include <linux/errno.h>
#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/vmalloc.h>

#include "pfncache_map.h"

static bool gpc_is_ram(kvm_pfn_t pfn, struct page *page)
{
	return page || (pfn_valid(pfn) && page_is_ram(pfn));
}

static void *gpc_vmap(const kvm_pfn_t *pfn, unsigned int nr, pgprot_t prot)
{
	struct page *pages[GPC_MAP_MAX];
	unsigned int i;

	for (i = 0; i < nr; i++)
		pages[i] = pfn_to_page(pfn[i]);

	return vmap(pages, nr, VM_MAP, prot);
}

static void *gpc_vmap_pfn(const kvm_pfn_t *pfn, unsigned int nr, pgprot_t prot)
{
	unsigned long frames[GPC_MAP_MAX];
	unsigned int i;

	for (i = 0; i < nr; i++)
		frames[i] = pfn[i];

	return vmap_pfn(frames, nr, prot);
}

/* Use the memory type of userspace's mapping. */
static void *gpc_vmap_by_type(const kvm_pfn_t *pfn, unsigned int nr, bool has_pages)
{
	pgprot_t prot = PAGE_KERNEL;
	unsigned int i;

	/* Which of the frames are encrypted isn't known here. */
	if (cc_platform_has(CC_ATTR_MEM_ENCRYPT))
		return ERR_PTR(-EOPNOTSUPP);

	for (i = 0; i < nr; i++) {
		pgprot_t p = PAGE_KERNEL;

		if (pfnmap_setup_cachemode(pfn[i], PAGE_SIZE, &p) ||
		    (i && pgprot_val(p) != pgprot_val(prot)))
			return ERR_PTR(-EOPNOTSUPP);
		prot = p;
	}

	return has_pages ? gpc_vmap(pfn, nr, prot) : gpc_vmap_pfn(pfn, nr, prot);
}

/**
 * gpc_direct_address() - find page frames in the direct map
 * @pfn: the frames
 * @page: their struct pages, NULL if unknown to the caller
 * @nr: their number, from 1 to GPC_MAP_MAX
 *
 * Return: The address of the first frame if the frames are contiguous in the
 *	   direct map, or else NULL.
 */
void *gpc_direct_address(const kvm_pfn_t *pfn, struct page *const *page, unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++) {
		if (pfn[i] != pfn[0] + i || !gpc_is_ram(pfn[i], page[i]) ||
		    PageHighMem(pfn_to_page(pfn[i])))
			return NULL;
	}

	return page_address(pfn_to_page(pfn[0]));
}

/**
 * gpc_map() - map page frames that aren't contiguous in the direct map
 * @pfn: the frames, which userspace has mapped or a guest_memfd has
 * @page: their struct pages, NULL if unknown to the caller
 * @nr: their number, from 1 to GPC_MAP_MAX
 *
 * RAM that has been removed from the direct map can be mapped, too.
 * gpc_direct_address() doesn't notice the removal, so a caller that maps such
 * RAM must not use it.
 *
 * Return: The mapping, to be passed to gpc_unmap(), or else an ERR_PTR() of:
 *	   -ENOMEM: the frames cannot be mapped,
 *	   -EOPNOTSUPP: the frames cannot be mapped together, because only some
 *	   of them have a struct page, or because they are scattered and their
 *	   memory types differ.
 */
struct gpc_map *gpc_map(const kvm_pfn_t *pfn, struct page *const *page, unsigned int nr)
{
	unsigned int i, nr_pages = 0, nr_known = 0;
	bool contiguous = true, any_ram = false;
	struct gpc_map *map;

	KUNIT_STATIC_STUB_REDIRECT(gpc_map, pfn, page, nr);

	might_sleep();

	for (i = 0; i < nr; i++) {
		contiguous &= pfn[i] == pfn[0] + i;
		any_ram |= gpc_is_ram(pfn[i], page[i]);
		nr_pages += pfn_valid(pfn[i]);
		nr_known += !!page[i];
	}

	map = kmalloc_obj(*map, GFP_KERNEL_ACCOUNT);
	if (!map)
		return ERR_PTR(-ENOMEM);

	map->is_memremapped = contiguous && !any_ram;
	if (map->is_memremapped) {
		map->addr = memremap(pfn_to_hpa(pfn[0]), nr * PAGE_SIZE, MEMREMAP_WB);
	} else if (nr_known == nr) {
		map->addr = gpc_vmap(pfn, nr, PAGE_KERNEL);
	} else if (!nr_pages || nr_pages == nr) {
		map->addr = gpc_vmap_by_type(pfn, nr, nr_pages);
	} else {
		/* vmap() and vmap_pfn() cannot be combined. */
		map->addr = ERR_PTR(-EOPNOTSUPP);
	}

	if (IS_ERR_OR_NULL(map->addr)) {
		int ret = map->addr ? PTR_ERR(map->addr) : -ENOMEM;

		kfree(map);
		return ERR_PTR(ret);
	}

	map->pfn = pfn[0];
	return map;
}

/**
 * gpc_unmap() - undo gpc_map()
 * @map: the return value of gpc_map()
 */
void gpc_unmap(struct gpc_map *map)
{
	might_sleep();

	if (map->is_memremapped)
		memunmap(map->addr);
	else
		vunmap(map->addr);

	kfree(map);
}
