// SPDX-License-Identifier: GPL-2.0-only
/*
 * From page frames to one kernel address, and back.
 *
 * This file knows nothing of caches, VMs or locks: the caller owns its struct
 * gpc_map, sees to it that the frames are what it wants to map, and that nobody
 * uses the address any more when it is unmapped.  No reference to a page is taken
 * or kept.  Both functions may sleep.
 *
 * How frames are mapped depends on what they are:
 *
 *  - pages of RAM that follow one another are in the direct map already, which
 *    costs nothing;
 *  - other memory that does, e.g. a device's or what the kernel was told to leave
 *    alone, is mapped by memremap().  It is not in the direct map even where it has
 *    struct pages, as all of a section has that has RAM somewhere;
 *  - all other frames with a struct page are mapped by vmap(), those without one by
 *    vmap_pfn().
 *
 * Frames with and without a struct page cannot be mapped together: vmap() wants one
 * for all of them, vmap_pfn() for none.
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

struct gpc_frames {
	bool contiguous;
	/* How many have a struct page that the caller knows, and how many have one. */
	unsigned int nr_known;
	unsigned int nr_pages;
	/* How many can be used as RAM, and how many are in the direct map. */
	unsigned int nr_ram;
	unsigned int nr_direct;
};

/* As it mostly is: the caller has got references to pages that follow one another. */
static bool gpc_are_direct(const kvm_pfn_t *pfn, struct page *const *page, unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++) {
		if (!page[i] || PageHighMem(page[i]) || pfn[i] != pfn[0] + i)
			return false;
	}

	return true;
}

static struct gpc_frames gpc_look_at_frames(const kvm_pfn_t *pfn, struct page *const *page,
					    unsigned int nr)
{
	struct gpc_frames f = { .contiguous = true };
	unsigned int i;

	for (i = 0; i < nr; i++) {
		if (i && pfn[i] != pfn[i - 1] + 1)
			f.contiguous = false;

		if (page[i])
			f.nr_known++;
		else if (!pfn_valid(pfn[i]))
			continue;
		f.nr_pages++;

		if (!page[i] && !page_is_ram(pfn[i]))
			continue;
		f.nr_ram++;

		if (!PageHighMem(pfn_to_page(pfn[i])))
			f.nr_direct++;
	}

	return f;
}

static noinline void *gpc_vmap(const kvm_pfn_t *pfn, unsigned int nr, pgprot_t prot)
{
	struct page *pages[GPC_MAP_MAX];
	unsigned int i;

	for (i = 0; i < nr; i++)
		pages[i] = pfn_to_page(pfn[i]);

	return vmap(pages, nr, VM_MAP, prot);
}

static noinline void *gpc_vmap_pfn(const kvm_pfn_t *pfn, unsigned int nr, pgprot_t prot)
{
	unsigned long frames[GPC_MAP_MAX];
	unsigned int i;

	for (i = 0; i < nr; i++)
		frames[i] = pfn[i];

	return vmap_pfn(frames, nr, prot);
}

static void *gpc_memremap(kvm_pfn_t pfn, unsigned int nr)
{
#ifdef CONFIG_HAS_IOMEM
	return memremap(pfn_to_hpa(pfn), nr * PAGE_SIZE, MEMREMAP_WB);
#else
	return NULL;
#endif
}

/* With the memory type that userspace's mapping has. */
static int gpc_frames_prot(const kvm_pfn_t *pfn, unsigned int nr, pgprot_t *prot)
{
	unsigned int i;

	/* Nobody says here which frames are encrypted. */
	if (cc_platform_has(CC_ATTR_MEM_ENCRYPT))
		return -EOPNOTSUPP;

	for (i = 0; i < nr; i++) {
		pgprot_t p = PAGE_KERNEL;

		if (pfnmap_setup_cachemode(pfn[i], PAGE_SIZE, &p))
			return -EOPNOTSUPP;
		if (i && pgprot_val(p) != pgprot_val(*prot))
			return -EOPNOTSUPP;
		*prot = p;
	}

	return 0;
}

static int gpc_map_scattered(struct gpc_map *map, const kvm_pfn_t *pfn, unsigned int nr,
			     const struct gpc_frames *f)
{
	pgprot_t prot;
	int ret;

	if (f->nr_known == nr) {
		map->kind = GPC_MAP_VMAP;
		map->addr = gpc_vmap(pfn, nr, PAGE_KERNEL);
		return 0;
	}

	if (f->nr_pages && f->nr_pages != nr)
		return -EOPNOTSUPP;

	ret = gpc_frames_prot(pfn, nr, &prot);
	if (ret)
		return ret;

	map->kind = GPC_MAP_VMAP_PFN;
	map->addr = f->nr_pages ? gpc_vmap(pfn, nr, prot) : gpc_vmap_pfn(pfn, nr, prot);
	return 0;
}

static noinline int gpc_map_any(struct gpc_map *map, const kvm_pfn_t *pfn,
				struct page *const *page, unsigned int nr)
{
	struct gpc_frames f = gpc_look_at_frames(pfn, page, nr);

	if (!f.contiguous || (f.nr_ram && f.nr_direct != nr))
		return gpc_map_scattered(map, pfn, nr, &f);

	if (f.nr_ram) {
		map->kind = GPC_MAP_DIRECT;
		map->addr = page_address(pfn_to_page(pfn[0]));
	} else {
		map->kind = GPC_MAP_MEMREMAP;
		map->addr = gpc_memremap(pfn[0], nr);
	}

	return 0;
}

/**
 * gpc_map() - map page frames
 * @map: where to put what gpc_unmap() needs; nothing may be mapped by it
 * @pfn: the frames, of the memory that userspace has mapped
 * @page: their struct pages, NULL for those of which the caller knows none
 * @nr: their number, from 1 to GPC_MAP_MAX
 *
 * Return: 0 and @map->addr, or else
 *	   -ENOMEM: the frames cannot be mapped,
 *	   -EOPNOTSUPP: there is no way to map such frames together: only some of
 *	   them have a struct page, or they are scattered and their memory types
 *	   differ.
 */
int gpc_map(struct gpc_map *map, const kvm_pfn_t *pfn, struct page *const *page,
	    unsigned int nr)
{
	unsigned int i;
	int ret = 0;

	KUNIT_STATIC_STUB_REDIRECT(gpc_map, map, pfn, page, nr);

	might_sleep();

	if (WARN_ON_ONCE(map->addr || !nr || nr > GPC_MAP_MAX))
		return -EINVAL;

	if (likely(gpc_are_direct(pfn, page, nr))) {
		map->kind = GPC_MAP_DIRECT;
		map->addr = page_address(page[0]);
	} else {
		ret = gpc_map_any(map, pfn, page, nr);
	}

	if (ret)
		return ret;
	if (!map->addr)
		return -ENOMEM;

	map->nr = nr;
	for (i = 0; i < nr; i++)
		map->pfn[i] = pfn[i];

	return 0;
}

/**
 * gpc_unmap() - undo gpc_map()
 * @map: what gpc_map() wrote, or all zeroes
 */
void gpc_unmap(struct gpc_map *map)
{
	if (!map->addr)
		return;

	might_sleep();

	switch (map->kind) {
	case GPC_MAP_VMAP:
	case GPC_MAP_VMAP_PFN:
		vunmap(map->addr);
		break;
#ifdef CONFIG_HAS_IOMEM
	case GPC_MAP_MEMREMAP:
		memunmap(map->addr);
		break;
#endif
	default:
		break;
	}

	map->addr = NULL;
}
